"""Sets of pictures: panels, joint captions, folders and samples."""
