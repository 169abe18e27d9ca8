"""The methods of the field side by side on one data set."""
