"""The metrics and accuracy: many encoders, the ratio of the weights, fine-tuning of one property at a time."""
