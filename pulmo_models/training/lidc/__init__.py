"""LIDC-IDRI and LUNA16: the readers' database, shapes from contours, samples from whole scans."""
