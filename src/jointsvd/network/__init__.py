"""A plan in, a network out. In order: methods, plan, copying, interface, layers, groups, rules, random_state, progress,
extras, cost, timing, replacing, lifted, shared, surgery, tensors, atomic, files."""
