"""The Gradio chat: the conversation, and beside it how the model read the last prompt."""
