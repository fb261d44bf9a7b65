"""What things are and how they are computed; knows no queue and no trainer."""
