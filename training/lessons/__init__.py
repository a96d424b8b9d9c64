"""Small models that are trained to show what a part of the network is for."""
