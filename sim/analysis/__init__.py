"""What an event log says: metrics, bounds, checks. Each analysis is a function of the log and of the setup it ran with."""
