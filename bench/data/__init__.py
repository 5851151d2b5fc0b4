"""The data sets, one file each. Importing this package registers them."""
