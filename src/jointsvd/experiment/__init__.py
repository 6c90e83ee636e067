"""One run of the lab: settings (checked), stages (a file made once), locks, resume. No Hydra."""
