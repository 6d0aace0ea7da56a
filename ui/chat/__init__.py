"""The tab of the chat: the conversation, and beside it how the model read each message."""
