"""A plan in, a network out. In order: methods, plan, layers, groups, rules, cost, timing, surgery, atomic, files."""
