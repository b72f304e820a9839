"""The agent: asks the model, runs the tools that it calls, and asks again until there is an answer."""
