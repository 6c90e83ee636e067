"""Ours: a trained network, calibration images and a budget in, a small network out. In order: budget, calibration,
options, untouched, sharing, processes, layer_times, allocation, refitting, report, compressed."""
