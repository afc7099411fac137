"""What a figure says, and that it can be drawn."""

import io


def texts(figure):
    found = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    return "\n".join(found)


def drawn(figure):
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
