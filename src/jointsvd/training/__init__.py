"""Dense networks and weights from files, image sets, schedules, training with Lightning, devices."""
