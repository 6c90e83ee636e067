"""A plan in, a network out. In order: methods, plan, layers, groups, rules, random_state, progress, cost, timing,
surgery, atomic, files."""
