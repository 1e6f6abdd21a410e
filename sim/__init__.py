"""Where does LLM decode wait? A discrete-event simulator of engines that share a memory channel."""

__version__ = "0.1.0"
