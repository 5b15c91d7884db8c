"""From a trained model to what is known of each particle."""
