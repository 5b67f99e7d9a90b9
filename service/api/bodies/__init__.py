"""Request bodies: JSON parsing beside the event loop, multipart uploads to disk, limits of size, pace and nesting."""
