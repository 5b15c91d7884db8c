"""What a trained run says about the particles: metrics, averages, figures."""
