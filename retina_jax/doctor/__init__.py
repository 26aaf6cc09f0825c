"""What is wrong with a data set, and what its anchors can match, before anything is trained."""
