"""What makes a trained network smaller without training it again: fewer weights, or shorter ones."""
