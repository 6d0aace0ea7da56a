"""Files that the browser makes of a text: nothing touches the server's disk."""

from __future__ import annotations

import json


def download_script(name: str, kind: str) -> str:
    """JavaScript for ``.success(None, text, None, js=...)``: the hidden textbox ``text`` becomes the file ``name`` of MIME type ``kind``."""
    return f"""(text) => {{
  if (text) {{
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {{ type: {json.dumps(kind)} }}));
    link.download = {json.dumps(name)};
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }}
  return [];
}}"""
