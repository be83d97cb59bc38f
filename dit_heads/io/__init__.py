"""Files: pictures with their settings inside, sheets of pictures, atomic writes."""
