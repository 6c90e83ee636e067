"""Ours: a trained network, calibration images and a budget in, a small network out. In order: budget, batches, losses,
task, calibration, walking, norms, strips, moments, memory, statistics, suitability, agreement, sources, options,
held_out, untouched, sharing, processes, weighing, layer_times, allocation, fitting, refitting, rehearsal, tuning,
report, compressed."""
