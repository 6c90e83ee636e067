"""Ours: a trained network, calibration images and a budget in, a small network out. In order: budget, calibration,
statistics, suitability, norms, agreement, options, held_out, untouched, sharing, processes, layer_times, allocation,
fitting, refitting, report, compressed."""
