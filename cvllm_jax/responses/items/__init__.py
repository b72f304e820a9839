"""Items of the Responses API: read into a chat's messages, and written from what an agent reports."""
