"""A web service for a trained network: a JSON API and a web page."""
