"""What a method's author needs; everything else stands on it."""
