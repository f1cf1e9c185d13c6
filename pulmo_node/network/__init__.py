"""The surface that the node shows to the network: who gets in (`access`), how much each may take (`limits`), the server
that holds both before an association exists (`server`), and TLS (`tls`).

Governed by DICOM PS3.8 9.3.2 and 9.3.4 (A-ASSOCIATE-RQ and -RJ), PS3.15 B (TLS profiles by BCP 195).
"""
