"""Other people's annotations and images to a data set that training reads."""
