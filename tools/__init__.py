"""What is for those who write hyperkern, and not for those who use it."""
