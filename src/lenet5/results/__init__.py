"""What training produced: its history, figures with intervals, pictures, the model card, exported models."""
