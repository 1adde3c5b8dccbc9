"""What the jobs do: data, configurations, training and measuring of encoders."""
