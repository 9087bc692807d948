"""What goes on inside a model: `longvision explain`. A method is one file here and one entry in `methods.METHODS`."""
