// Reads a measurement report the way OHIF does, without a browser: dcmjs parses the file, and the adapters of
// Cornerstone3D make measurements of its groups. Usage:
//   node adapters.mjs --modules NODE_MODULES --sr FILE --planes JSON
// `planes` holds for each SOP Instance UID of the series its place in the patient, as a viewer has it from the images:
// {"origin": [x, y, z], "row_cosines": [..], "column_cosines": [..], "spacing": [rows, columns]}.
// Prints one JSON object: the title of the report, its measurement groups and the measurements made of them.

import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";

const { values } = parseArgs({
  options: { modules: { type: "string" }, sr: { type: "string" }, planes: { type: "string" } },
});
const load = (file) => import(pathToFileURL(path.join(values.modules, file)));

const said = [];
for (const level of ["log", "warn", "info", "error"]) {
  console[level] = (...words) => said.push({ level, text: words.map(String).join(" ") }); // standard output is the JSON's
}

const dcmjs = (await load("dcmjs/build/dcmjs.es.js")).default;
const core = await load("@cornerstonejs/core/dist/esm/index.js");
const { MeasurementReport } = (await load("@cornerstonejs/adapters/dist/esm/index.js")).adaptersSR.Cornerstone3D;

const planes = JSON.parse(fs.readFileSync(values.planes, "utf8"));
const imageIds = Object.fromEntries(Object.keys(planes).map((uid) => [`${uid}:1`, `image:${uid}`]));
const planeModule = (type, imageId) => {
  const plane = planes[String(imageId).replace("image:", "")];
  if (type !== "imagePlaneModule" || plane === undefined) {
    return undefined;
  }
  return {
    frameOfReferenceUID: plane.frame_of_reference,
    imagePositionPatient: plane.origin,
    rowCosines: plane.row_cosines,
    columnCosines: plane.column_cosines,
    rowPixelSpacing: plane.spacing[0],
    columnPixelSpacing: plane.spacing[1],
  };
};
core.metaData.addProvider(planeModule);

const file = fs.readFileSync(values.sr);
const message = dcmjs.data.DicomMessage.readFile(file.buffer.slice(file.byteOffset, file.byteOffset + file.length));
const dataset = dcmjs.data.DicomMetaDictionary.naturalizeDataset(message.dict);
const list = (value) => (value === undefined ? [] : Array.isArray(value) ? value : [value]);
const one = (value) => list(value)[0];
const meaning = (item) => one(item.ConceptNameCodeSequence)?.CodeMeaning;

const measurements = list(dataset.ContentSequence).find((item) => meaning(item) === "Imaging Measurements");
const groups = list(measurements?.ContentSequence).filter((item) => meaning(item) === "Measurement Group");
const found = MeasurementReport.generateToolState(dataset, imageIds, { get: planeModule });

const numbers = (group) =>
  list(group.ContentSequence)
    .filter((item) => item.ValueType === "NUM")
    .map((item) => {
      const name = one(item.ConceptNameCodeSequence);
      const measured = one(item.MeasuredValueSequence);
      const modifiers = list(item.ContentSequence).filter((child) => child.ValueType === "CODE");
      return {
        scheme: name.CodingSchemeDesignator,
        code: name.CodeValue,
        derivation: modifiers.map((child) => one(child.ConceptCodeSequence).CodeValue).join(),
        value: Number(one(measured.NumericValue)),
        unit: one(measured.MeasurementUnitsCodeSequence).CodeValue,
      };
    });

const result = {
  title: one(dataset.ConceptNameCodeSequence).CodeValue,
  groups: groups.map((group) => ({ numbers: numbers(group) })),
  measurements: Object.entries(found).flatMap(([tool, states]) =>
    states.map((state) => ({
      tool,
      tracking_uid: state.TrackingUniqueIdentifier,
      image: state.sopInstanceUid,
      label: state.annotation.data.label,
      finding: state.finding?.CodeMeaning,
      sites: state.findingSites.map((site) => one(site)?.CodeMeaning ?? site.CodeMeaning),
      points_lps_mm: state.annotation.data.handles.points.map((point) => Array.from(point)),
      statistics: Object.values(state.annotation.data.cachedStats)[0],
    })),
  ),
  warnings: said.filter((line) => line.level === "warn" || line.level === "error").map((line) => line.text),
};
process.stdout.write(JSON.stringify(result));
