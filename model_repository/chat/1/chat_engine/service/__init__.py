"""What every engine needs around it: delivery, metrics, shutdown, the model's thread."""
