"""A web service over a trained network: a JSON API and a local page."""
