BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0007');
CREATE TABLE commitments (
	id INTEGER NOT NULL, 
	transaction_uid VARCHAR(64) NOT NULL, 
	calling_ae_title VARCHAR(16) NOT NULL, 
	instances JSON NOT NULL, 
	attempts INTEGER NOT NULL, 
	not_before DATETIME NOT NULL, 
	CONSTRAINT pk_commitments PRIMARY KEY (id), 
	CONSTRAINT uq_commitments_transaction_uid UNIQUE (transaction_uid, calling_ae_title)
);
INSERT INTO "commitments" VALUES(1,'2.25.99','SCANNER','[["1.2.840.10008.5.1.4.1.1.2", "1.1.1"]]',0,'2026-10-25 00:30:00.000000');
CREATE TABLE deliveries (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	job_id INTEGER NOT NULL, 
	result_id INTEGER NOT NULL, 
	destination VARCHAR(64) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	attempts INTEGER NOT NULL, 
	not_before DATETIME, 
	reason TEXT, 
	worker_id VARCHAR(128), 
	lease_until DATETIME, 
	updated_at DATETIME NOT NULL, commitment_uid VARCHAR(64), commitment_until DATETIME, 
	CONSTRAINT fk_deliveries_job_id_jobs FOREIGN KEY(job_id) REFERENCES jobs (id), 
	CONSTRAINT fk_deliveries_result_id_results FOREIGN KEY(result_id) REFERENCES results (id), 
	CONSTRAINT uq_deliveries_result_id UNIQUE (result_id, destination)
);
INSERT INTO "deliveries" VALUES(1,1,1,'pacs','SENT',0,NULL,NULL,NULL,NULL,'2026-10-25 00:30:00.000000',NULL,NULL);
INSERT INTO "deliveries" VALUES(2,1,2,'pacs','SENT',0,NULL,NULL,NULL,NULL,'2026-10-25 00:30:00.000000',NULL,NULL);
INSERT INTO "deliveries" VALUES(3,2,3,'pacs','PENDING',1,'2026-10-25 00:31:00.000000','connection refused',NULL,NULL,'2026-10-25 00:30:00.000000',NULL,NULL);
INSERT INTO "deliveries" VALUES(4,7,4,'pacs','SENT',0,NULL,NULL,NULL,NULL,'2026-10-25 00:30:00.000000','2.25.98','2026-10-25 02:30:00.000000');
CREATE TABLE events (
	id INTEGER NOT NULL, 
	at DATETIME NOT NULL, 
	study_instance_uid VARCHAR(64) NOT NULL, 
	series_instance_uid VARCHAR(64), 
	subject VARCHAR(64) NOT NULL, 
	event VARCHAR(32) NOT NULL, 
	state VARCHAR(16), 
	detail TEXT, 
	CONSTRAINT pk_events PRIMARY KEY (id)
);
INSERT INTO "events" VALUES(1,'2026-10-25 00:30:00.000000','1','1.1','series','instance','RECEIVING','1.1.1 from SCANNER is the first of the series');
INSERT INTO "events" VALUES(2,'2026-10-25 00:30:00.000000','1','1.1','series','quiet','COMPLETE','1 instances');
INSERT INTO "events" VALUES(3,'2026-10-25 00:30:00.000000','1','1.1','job 1','queued','QUEUED','ct for pacs');
INSERT INTO "events" VALUES(4,'2026-10-25 00:30:00.000000','1','1.1','job 1','encoded','ENCODED','sr, seg');
INSERT INTO "events" VALUES(5,'2026-10-25 00:30:00.000000','1','1.1','delivery 1','sent','SENT','sr to pacs: 0x0000');
INSERT INTO "events" VALUES(6,'2026-10-25 00:30:00.000000','1','1.1','delivery 2','sent','SENT','seg to pacs: 0x0000');
INSERT INTO "events" VALUES(7,'2026-10-25 00:30:00.000000','1','1.1','job 1','delivered','DONE',NULL);
INSERT INTO "events" VALUES(8,'2026-10-25 00:30:00.000000','2','2.1','series','instance','RECEIVING','2.1.1 from SCANNER is the first of the series');
INSERT INTO "events" VALUES(9,'2026-10-25 00:30:00.000000','2','2.1','series','quiet','COMPLETE','1 instances');
INSERT INTO "events" VALUES(10,'2026-10-25 00:30:00.000000','2','2.1','job 2','queued','QUEUED','ct for pacs');
INSERT INTO "events" VALUES(11,'2026-10-25 00:30:00.000000','2','2.1','job 2','encoded','ENCODED','sr');
INSERT INTO "events" VALUES(12,'2026-10-25 00:30:00.000000','2','2.1','delivery 3','deferred','PENDING','sr to pacs: connection refused; again not before 2026-10-25T00:31:00+00:00');
INSERT INTO "events" VALUES(13,'2026-10-25 00:30:00.000000','3','3.1','series','instance','RECEIVING','3.1.1 from SCANNER is the first of the series');
INSERT INTO "events" VALUES(14,'2026-10-25 00:30:00.000000','3','3.1','series','quiet','COMPLETE','1 instances');
INSERT INTO "events" VALUES(15,'2026-10-25 00:30:00.000000','3','3.1','job 3','queued','QUEUED','ct for pacs');
INSERT INTO "events" VALUES(16,'2026-10-25 00:30:00.000000','3','3.1','job 3','rejected','REJECTED','NOT_AXIAL: not axial');
INSERT INTO "events" VALUES(17,'2026-10-25 00:30:00.000000','4','4.1','series','instance','RECEIVING','4.1.1 from SCANNER is the first of the series');
INSERT INTO "events" VALUES(18,'2026-10-25 00:30:00.000000','4','4.1','series','quiet','COMPLETE','1 instances');
INSERT INTO "events" VALUES(19,'2026-10-25 00:30:00.000000','4','4.1','job 4','queued','QUEUED','ct for pacs');
INSERT INTO "events" VALUES(20,'2026-10-25 00:30:00.000000','4','4.1','job 4','failed','FAILED','GAVE_UP: busy');
INSERT INTO "events" VALUES(21,'2026-10-25 00:30:00.000000','5','5.1','series','instance','RECEIVING','5.1.1 from SCANNER is the first of the series');
INSERT INTO "events" VALUES(22,'2026-10-25 00:30:00.000000','5','5.1','series','quiet','COMPLETE','1 instances');
INSERT INTO "events" VALUES(23,'2026-10-25 00:30:00.000000','5','5.1','job 5','queued','QUEUED','ct for pacs');
INSERT INTO "events" VALUES(24,'2026-10-25 00:30:00.000000','5','5.1','job 5','quarantined','QUARANTINED','took the worker down');
INSERT INTO "events" VALUES(25,'2026-10-25 00:30:00.000000','6','6.1','series','instance','RECEIVING','6.1.1 from SCANNER is the first of the series');
INSERT INTO "events" VALUES(26,'2026-10-25 00:30:00.000000','6','6.1','series','quiet','COMPLETE','1 instances');
INSERT INTO "events" VALUES(27,'2026-10-25 00:30:00.000000','6','6.1','job 6','queued','QUEUED','ct for pacs');
INSERT INTO "events" VALUES(28,'2026-10-25 00:30:00.000000','6','6.1','series','instance','RECEIVING','6.1.2 from SCANNER reopens the series as revision 2');
INSERT INTO "events" VALUES(29,'2026-10-25 00:30:00.000000','6','6.1','job 6','superseded','SUPERSEDED',NULL);
INSERT INTO "events" VALUES(30,'2026-10-25 00:30:00.000000','6','6.1','instance','conflict',NULL,'6.1.1 came from SCANNER in study 6, series 6.1, unlike what is in use; kept aside as instances/6/6.1/6.1.1.conflict-b.dcm');
INSERT INTO "events" VALUES(31,'2026-10-25 00:30:00.000000','9','9.1','series','instance','RECEIVING','9.1.1 from SCANNER is the first of the series');
INSERT INTO "events" VALUES(32,'2026-10-25 00:30:00.000000','9','9.1','series','quiet','COMPLETE','1 instances');
INSERT INTO "events" VALUES(33,'2026-10-25 00:30:00.000000','9','9.1','job 7','queued','QUEUED','ct for pacs');
INSERT INTO "events" VALUES(34,'2026-10-25 00:30:00.000000','9','9.1','job 7','encoded','ENCODED','sr');
INSERT INTO "events" VALUES(35,'2026-10-25 00:30:00.000000','9','9.1','delivery 4','sent','SENT','sr to pacs: 0x0000');
INSERT INTO "events" VALUES(36,'2026-10-25 00:30:00.000000','7','7.1','series','instance','RECEIVING','7.1.1 from SCANNER is the first of the series');
INSERT INTO "events" VALUES(37,'2026-10-25 00:30:00.000000','7','7.1','series','quiet','COMPLETE','1 instances');
INSERT INTO "events" VALUES(38,'2026-10-25 00:30:00.000000','7','7.1','job 8','queued','QUEUED','ct for pacs');
INSERT INTO "events" VALUES(39,'2026-10-25 00:30:00.000000','8','8.1','series','instance','RECEIVING','8.1.1 from SCANNER is the first of the series');
INSERT INTO "events" VALUES(40,'2026-10-25 00:30:00.000000','8','8.1','series','quiet','COMPLETE','no rule matches');
INSERT INTO "events" VALUES(41,'2026-10-25 00:30:00.000000','2',NULL,'study','priority',NULL,'STAT');
INSERT INTO "events" VALUES(42,'2026-10-25 00:30:00.000000','3',NULL,'study','purged',NULL,'1 images');
INSERT INTO "events" VALUES(43,'2026-10-25 01:02:00.000000','7','7.1','job 8','taken over','QUEUED','the lease of lost expired');
INSERT INTO "events" VALUES(44,'2026-10-25 01:02:00.000000','7','7.1','job 8','released','QUEUED','given back by its worker');
CREATE TABLE findings (
	id INTEGER NOT NULL, 
	job_id INTEGER NOT NULL, 
	segment_number INTEGER NOT NULL, 
	tracking_uid VARCHAR(64) NOT NULL, 
	centre_x_mm DOUBLE NOT NULL, 
	centre_y_mm DOUBLE NOT NULL, 
	centre_z_mm DOUBLE NOT NULL, 
	long_axis_mm DOUBLE NOT NULL, 
	short_axis_mm DOUBLE NOT NULL, 
	volume_mm3 DOUBLE NOT NULL, 
	mean_hu DOUBLE NOT NULL, 
	min_hu DOUBLE, 
	max_hu DOUBLE, 
	laterality VARCHAR(8), 
	pleura_distance_mm DOUBLE, 
	candidate_score DOUBLE NOT NULL, 
	detection_probability DOUBLE NOT NULL, 
	malignancy_probability DOUBLE NOT NULL, 
	malignancy_bias DOUBLE NOT NULL, 
	concepts JSON NOT NULL, 
	cautions JSON NOT NULL, 
	CONSTRAINT pk_findings PRIMARY KEY (id), 
	CONSTRAINT fk_findings_job_id_jobs FOREIGN KEY(job_id) REFERENCES jobs (id), 
	CONSTRAINT uq_findings_job_id UNIQUE (job_id, segment_number)
);
INSERT INTO "findings" VALUES(1,1,1,'2.25.7.1',-61.13,1.1,1203.07,14.21,9.83,1403.3,-12.7,-611.1,84.9,'right',3.7,0.9137,0.9871,0.5503,-1.2346,'{"spiculation": {"value": 3.14, "contribution": 0.4123}}','[{"code": "TOUCHES_INTERPOLATED", "sentence": "One slice was interpolated."}]');
INSERT INTO "findings" VALUES(2,1,2,'2.25.7.2',-61.13,2.1,1203.07,14.21,9.83,1403.3,-12.7,-611.1,84.9,'right',3.7,0.9137,0.9871,0.5503,-1.2346,'{"spiculation": {"value": 3.14, "contribution": 0.4123}}','[{"code": "TOUCHES_INTERPOLATED", "sentence": "One slice was interpolated."}]');
INSERT INTO "findings" VALUES(3,2,1,'2.25.7.1',-61.13,1.1,1203.07,14.21,9.83,1403.3,-12.7,-611.1,84.9,'right',3.7,0.9137,0.9871,0.5503,-1.2346,'{"spiculation": {"value": 3.14, "contribution": 0.4123}}','[{"code": "TOUCHES_INTERPOLATED", "sentence": "One slice was interpolated."}]');
INSERT INTO "findings" VALUES(4,2,2,'2.25.7.2',-61.13,2.1,1203.07,14.21,9.83,1403.3,-12.7,-611.1,84.9,'right',3.7,0.9137,0.9871,0.5503,-1.2346,'{"spiculation": {"value": 3.14, "contribution": 0.4123}}','[{"code": "TOUCHES_INTERPOLATED", "sentence": "One slice was interpolated."}]');
INSERT INTO "findings" VALUES(5,7,1,'2.25.7.1',-61.13,1.1,1203.07,14.21,9.83,1403.3,-12.7,-611.1,84.9,'right',3.7,0.9137,0.9871,0.5503,-1.2346,'{"spiculation": {"value": 3.14, "contribution": 0.4123}}','[{"code": "TOUCHES_INTERPOLATED", "sentence": "One slice was interpolated."}]');
INSERT INTO "findings" VALUES(6,7,2,'2.25.7.2',-61.13,2.1,1203.07,14.21,9.83,1403.3,-12.7,-611.1,84.9,'right',3.7,0.9137,0.9871,0.5503,-1.2346,'{"spiculation": {"value": 3.14, "contribution": 0.4123}}','[{"code": "TOUCHES_INTERPOLATED", "sentence": "One slice was interpolated."}]');
CREATE TABLE instances (
	id INTEGER NOT NULL, 
	series_id INTEGER NOT NULL, 
	sop_instance_uid VARCHAR(64) NOT NULL, 
	sop_class_uid VARCHAR(64) NOT NULL, 
	transfer_syntax_uid VARCHAR(64) NOT NULL, 
	path TEXT NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	size_bytes BIGINT NOT NULL, 
	received_at DATETIME NOT NULL, purged_at DATETIME, 
	CONSTRAINT pk_instances PRIMARY KEY (id), 
	CONSTRAINT fk_instances_series_id_series FOREIGN KEY(series_id) REFERENCES series (id), 
	CONSTRAINT uq_instances_sop_instance_uid UNIQUE (sop_instance_uid)
);
INSERT INTO "instances" VALUES(1,1,'1.1.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','instances/1/1.1/1.1.1.dcm','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',527000,'2026-10-25 00:30:00.000000',NULL);
INSERT INTO "instances" VALUES(2,2,'2.1.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','instances/2/2.1/2.1.1.dcm','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',527000,'2026-10-25 00:30:00.000000',NULL);
INSERT INTO "instances" VALUES(3,3,'3.1.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','instances/3/3.1/3.1.1.dcm','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',527000,'2026-10-25 00:30:00.000000','2026-10-25 00:30:00.000000');
INSERT INTO "instances" VALUES(4,4,'4.1.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','instances/4/4.1/4.1.1.dcm','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',527000,'2026-10-25 00:30:00.000000',NULL);
INSERT INTO "instances" VALUES(5,5,'5.1.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','instances/5/5.1/5.1.1.dcm','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',527000,'2026-10-25 00:30:00.000000',NULL);
INSERT INTO "instances" VALUES(6,6,'6.1.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','instances/6/6.1/6.1.1.dcm','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',527000,'2026-10-25 00:30:00.000000',NULL);
INSERT INTO "instances" VALUES(7,6,'6.1.2','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','instances/6/6.1/6.1.2.dcm','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',527000,'2026-10-25 00:30:00.000000',NULL);
INSERT INTO "instances" VALUES(8,7,'9.1.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','instances/9/9.1/9.1.1.dcm','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',527000,'2026-10-25 00:30:00.000000',NULL);
INSERT INTO "instances" VALUES(9,8,'7.1.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','instances/7/7.1/7.1.1.dcm','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',527000,'2026-10-25 00:30:00.000000',NULL);
INSERT INTO "instances" VALUES(10,9,'8.1.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','instances/8/8.1/8.1.1.dcm','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',527000,'2026-10-25 00:30:00.000000',NULL);
CREATE TABLE jobs (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	series_id INTEGER NOT NULL, 
	revision INTEGER NOT NULL, 
	pipeline VARCHAR(128) NOT NULL, 
	destinations JSON NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	attempts INTEGER NOT NULL, 
	not_before DATETIME, 
	reason_code VARCHAR(64), 
	reason TEXT, 
	worker_id VARCHAR(128), 
	lease_until DATETIME, 
	findings TEXT, 
	created_at DATETIME NOT NULL, 
	updated_at DATETIME NOT NULL, priority INTEGER DEFAULT '0' NOT NULL, takeovers INTEGER DEFAULT '0' NOT NULL, step VARCHAR(32), share DOUBLE, 
	CONSTRAINT fk_jobs_series_id_series FOREIGN KEY(series_id) REFERENCES series (id), 
	CONSTRAINT uq_jobs_series_id UNIQUE (series_id, revision, pipeline)
);
INSERT INTO "jobs" VALUES(1,1,1,'ct','["pacs"]','DONE',0,NULL,NULL,NULL,NULL,NULL,'{"schema_version": 3, "malignancy_bias": -1.2346, "nodules": [{"segment_number": 1, "tracking_uid": "2.25.7.1", "centre_lps_mm": [-61.13, 1.1, 1203.07], "long_axis_mm": 14.21, "short_axis_mm": 9.83, "volume_mm3": 1403.3, "mean_hu": -12.7, "min_hu": -611.1, "max_hu": 84.9, "laterality": "right", "pleura_distance_mm": 3.7, "candidate_score": 0.9137, "detection_probability": 0.9871, "malignancy_probability": 0.5503, "concepts": {"spiculation": {"value": 3.14, "contribution": 0.4123}}, "cautions": [{"code": "TOUCHES_INTERPOLATED", "sentence": "One slice was interpolated."}]}, {"segment_number": 2, "tracking_uid": "2.25.7.2", "centre_lps_mm": [-61.13, 2.1, 1203.07], "long_axis_mm": 14.21, "short_axis_mm": 9.83, "volume_mm3": 1403.3, "mean_hu": -12.7, "min_hu": -611.1, "max_hu": 84.9, "laterality": "right", "pleura_distance_mm": 3.7, "candidate_score": 0.9137, "detection_probability": 0.9871, "malignancy_probability": 0.5503, "concepts": {"spiculation": {"value": 3.14, "contribution": 0.4123}}, "cautions": [{"code": "TOUCHES_INTERPOLATED", "sentence": "One slice was interpolated."}]}]}','2026-10-25 00:30:00.000000','2026-10-25 00:30:00.000000',0,0,NULL,NULL);
INSERT INTO "jobs" VALUES(2,2,1,'ct','["pacs"]','ENCODED',0,NULL,NULL,NULL,NULL,NULL,'{"schema_version": 3, "malignancy_bias": -1.2346, "nodules": [{"segment_number": 1, "tracking_uid": "2.25.7.1", "centre_lps_mm": [-61.13, 1.1, 1203.07], "long_axis_mm": 14.21, "short_axis_mm": 9.83, "volume_mm3": 1403.3, "mean_hu": -12.7, "min_hu": -611.1, "max_hu": 84.9, "laterality": "right", "pleura_distance_mm": 3.7, "candidate_score": 0.9137, "detection_probability": 0.9871, "malignancy_probability": 0.5503, "concepts": {"spiculation": {"value": 3.14, "contribution": 0.4123}}, "cautions": [{"code": "TOUCHES_INTERPOLATED", "sentence": "One slice was interpolated."}]}, {"segment_number": 2, "tracking_uid": "2.25.7.2", "centre_lps_mm": [-61.13, 2.1, 1203.07], "long_axis_mm": 14.21, "short_axis_mm": 9.83, "volume_mm3": 1403.3, "mean_hu": -12.7, "min_hu": -611.1, "max_hu": 84.9, "laterality": "right", "pleura_distance_mm": 3.7, "candidate_score": 0.9137, "detection_probability": 0.9871, "malignancy_probability": 0.5503, "concepts": {"spiculation": {"value": 3.14, "contribution": 0.4123}}, "cautions": [{"code": "TOUCHES_INTERPOLATED", "sentence": "One slice was interpolated."}]}]}','2026-10-25 00:30:00.000000','2026-10-25 00:30:00.000000',1,0,NULL,NULL);
INSERT INTO "jobs" VALUES(3,3,1,'ct','["pacs"]','REJECTED',0,NULL,'NOT_AXIAL','not axial',NULL,NULL,NULL,'2026-10-25 00:30:00.000000','2026-10-25 00:30:00.000000',0,0,NULL,NULL);
INSERT INTO "jobs" VALUES(4,4,1,'ct','["pacs"]','FAILED',0,NULL,'GAVE_UP','busy',NULL,NULL,NULL,'2026-10-25 00:30:00.000000','2026-10-25 00:30:00.000000',0,0,NULL,NULL);
INSERT INTO "jobs" VALUES(5,5,1,'ct','["pacs"]','QUARANTINED',0,NULL,NULL,'took the worker down',NULL,NULL,NULL,'2026-10-25 00:30:00.000000','2026-10-25 00:30:00.000000',0,0,NULL,NULL);
INSERT INTO "jobs" VALUES(6,6,1,'ct','["pacs"]','SUPERSEDED',0,NULL,NULL,NULL,NULL,NULL,NULL,'2026-10-25 00:30:00.000000','2026-10-25 00:30:00.000000',0,0,NULL,NULL);
INSERT INTO "jobs" VALUES(7,7,1,'ct','["pacs"]','ENCODED',0,NULL,NULL,NULL,NULL,NULL,'{"schema_version": 3, "malignancy_bias": -1.2346, "nodules": [{"segment_number": 1, "tracking_uid": "2.25.7.1", "centre_lps_mm": [-61.13, 1.1, 1203.07], "long_axis_mm": 14.21, "short_axis_mm": 9.83, "volume_mm3": 1403.3, "mean_hu": -12.7, "min_hu": -611.1, "max_hu": 84.9, "laterality": "right", "pleura_distance_mm": 3.7, "candidate_score": 0.9137, "detection_probability": 0.9871, "malignancy_probability": 0.5503, "concepts": {"spiculation": {"value": 3.14, "contribution": 0.4123}}, "cautions": [{"code": "TOUCHES_INTERPOLATED", "sentence": "One slice was interpolated."}]}, {"segment_number": 2, "tracking_uid": "2.25.7.2", "centre_lps_mm": [-61.13, 2.1, 1203.07], "long_axis_mm": 14.21, "short_axis_mm": 9.83, "volume_mm3": 1403.3, "mean_hu": -12.7, "min_hu": -611.1, "max_hu": 84.9, "laterality": "right", "pleura_distance_mm": 3.7, "candidate_score": 0.9137, "detection_probability": 0.9871, "malignancy_probability": 0.5503, "concepts": {"spiculation": {"value": 3.14, "contribution": 0.4123}}, "cautions": [{"code": "TOUCHES_INTERPOLATED", "sentence": "One slice was interpolated."}]}]}','2026-10-25 00:30:00.000000','2026-10-25 00:30:00.000000',0,0,NULL,NULL);
INSERT INTO "jobs" VALUES(8,8,1,'ct','["pacs"]','QUEUED',0,NULL,NULL,NULL,'worker','2026-10-25 01:20:00.000000',NULL,'2026-10-25 00:30:00.000000','2026-10-25 01:10:00.000000',0,1,'stage1',0.42);
CREATE TABLE results (
	id INTEGER NOT NULL, 
	job_id INTEGER NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	sop_class_uid VARCHAR(64) NOT NULL, 
	sop_instance_uid VARCHAR(64) NOT NULL, 
	series_instance_uid VARCHAR(64) NOT NULL, 
	path TEXT NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	in_use BOOLEAN NOT NULL, 
	CONSTRAINT pk_results PRIMARY KEY (id), 
	CONSTRAINT fk_results_job_id_jobs FOREIGN KEY(job_id) REFERENCES jobs (id), 
	CONSTRAINT uq_results_job_id UNIQUE (job_id, sop_instance_uid)
);
INSERT INTO "results" VALUES(1,1,'sr','1.2.840.10008.5.1.4.1.1.88.34','2.25.11','2.25.11.0','outbox/2.25.11.dcm','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff',1);
INSERT INTO "results" VALUES(2,1,'seg','1.2.840.10008.5.1.4.1.1.88.34','2.25.12','2.25.12.0','outbox/2.25.12.dcm','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff',1);
INSERT INTO "results" VALUES(3,2,'sr','1.2.840.10008.5.1.4.1.1.88.34','2.25.21','2.25.21.0','outbox/2.25.21.dcm','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff',1);
INSERT INTO "results" VALUES(4,7,'sr','1.2.840.10008.5.1.4.1.1.88.34','2.25.91','2.25.91.0','outbox/2.25.91.dcm','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff',1);
CREATE TABLE series (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	study_instance_uid VARCHAR(64) NOT NULL, 
	series_instance_uid VARCHAR(64) NOT NULL, 
	modality VARCHAR(16) NOT NULL, 
	calling_ae_title VARCHAR(16) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	revision INTEGER NOT NULL, 
	number_of_instances INTEGER NOT NULL, 
	last_instance_at DATETIME NOT NULL, 
	note TEXT, 
	updated_at DATETIME NOT NULL, priority INTEGER DEFAULT '0' NOT NULL, 
	CONSTRAINT uq_series_series_instance_uid UNIQUE (series_instance_uid)
);
INSERT INTO "series" VALUES(1,'1','1.1','CT','SCANNER','COMPLETE',1,1,'2026-10-25 00:30:00.000000',NULL,'2026-10-25 00:30:00.000000',0);
INSERT INTO "series" VALUES(2,'2','2.1','CT','SCANNER','COMPLETE',1,1,'2026-10-25 00:30:00.000000',NULL,'2026-10-25 00:30:00.000000',1);
INSERT INTO "series" VALUES(3,'3','3.1','CT','SCANNER','COMPLETE',1,1,'2026-10-25 00:30:00.000000',NULL,'2026-10-25 00:30:00.000000',0);
INSERT INTO "series" VALUES(4,'4','4.1','CT','SCANNER','COMPLETE',1,1,'2026-10-25 00:30:00.000000',NULL,'2026-10-25 00:30:00.000000',0);
INSERT INTO "series" VALUES(5,'5','5.1','CT','SCANNER','COMPLETE',1,1,'2026-10-25 00:30:00.000000',NULL,'2026-10-25 00:30:00.000000',0);
INSERT INTO "series" VALUES(6,'6','6.1','CT','SCANNER','RECEIVING',2,2,'2026-10-25 00:30:00.000000',NULL,'2026-10-25 00:30:00.000000',0);
INSERT INTO "series" VALUES(7,'9','9.1','CT','SCANNER','COMPLETE',1,1,'2026-10-25 00:30:00.000000',NULL,'2026-10-25 00:30:00.000000',0);
INSERT INTO "series" VALUES(8,'7','7.1','CT','SCANNER','COMPLETE',1,1,'2026-10-25 00:30:00.000000',NULL,'2026-10-25 00:30:00.000000',0);
INSERT INTO "series" VALUES(9,'8','8.1','CT','SCANNER','COMPLETE',1,1,'2026-10-25 00:30:00.000000','no rule matches','2026-10-25 00:30:00.000000',0);
CREATE INDEX ix_series_state ON series (state, last_instance_at);
CREATE INDEX ix_series_study_instance_uid ON series (study_instance_uid);
CREATE INDEX ix_instances_series_id ON instances (series_id);
CREATE INDEX ix_jobs_state ON jobs (state, id);
CREATE INDEX ix_deliveries_job_id ON deliveries (job_id);
CREATE INDEX ix_deliveries_state ON deliveries (state, destination, job_id);
CREATE INDEX ix_events_study_instance_uid ON events (study_instance_uid);
CREATE INDEX ix_deliveries_commitment_uid ON deliveries (commitment_uid);
CREATE INDEX ix_deliveries_commitment_until ON deliveries (commitment_until) WHERE commitment_until IS NOT NULL;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('series',9);
INSERT INTO "sqlite_sequence" VALUES('jobs',8);
INSERT INTO "sqlite_sequence" VALUES('deliveries',4);
COMMIT;
