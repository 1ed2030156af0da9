"""What is wrong with recorded events and with a data set made of them, before a model learns it."""
