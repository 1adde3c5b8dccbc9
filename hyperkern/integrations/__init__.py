"""Drop-in replacements for the losses of other projects: the same names, signatures and scaling."""
