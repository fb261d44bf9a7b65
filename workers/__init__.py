"""From an S3 event to a Qdrant point: intake, queue, sync task, query service, command line."""
