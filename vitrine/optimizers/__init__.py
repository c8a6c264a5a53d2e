"""The rules of the update and the schedule of the learning rate."""
