"""Tables of papers: their cells from a results folder, the printed numbers beside them, and the files of both."""
