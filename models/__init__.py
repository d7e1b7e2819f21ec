"""Small trained reference models on handwritten digits: their data, builders and training."""
