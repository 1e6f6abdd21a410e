"""The mapping: op graphs become task graphs and step graphs."""
