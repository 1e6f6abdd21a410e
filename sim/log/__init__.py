"""The event log: columnar tables of what ran where and when."""
