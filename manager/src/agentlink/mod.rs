//! The manager's end of the channel to a container's agent.
