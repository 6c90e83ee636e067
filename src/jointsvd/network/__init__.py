"""A plan in, a network out. In order: methods, plan, layers, groups, rules, random_state, progress, extras, cost,
timing, surgery, tensors, atomic, files."""
