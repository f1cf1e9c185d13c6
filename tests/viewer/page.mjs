/* What runs inside OHIF's page: each function is sent there by itself, so none may use another.
   OHIF puts `services` and `cornerstone` on the window. */

/** What OHIF lists of the study, once all the series are there; null before. */
export function sets(series) {
  const found = window.services?.displaySetService?.getActiveDisplaySets?.() ?? [];
  if (!series.every(uid => found.some(set => set.SeriesInstanceUID === uid))) return null;
  return found.map(set => ({
    uid: set.displaySetInstanceUID,
    modality: set.Modality,
    number: set.SeriesNumber,
    description: set.SeriesDescription,
    series: set.SeriesInstanceUID,
    images: set.images?.length ?? 0,
    unsupported: Boolean(set.unsupported),
  }));
}

/** Resolves with true once an image is on the canvas, the current one, and stays as it is; false after the limit. */
export async function settle(limitMs) {
  const { viewportGridService, cornerstoneViewportService } = window.services;
  const { cornerstone, cornerstoneTools } = window;
  // Until nothing was drawn for 200 ms; asking for a drawing first makes sure that the last state is on the canvas.
  const quiet = viewport =>
    new Promise(resolve => {
      const drawn = [
        [viewport?.element, cornerstone.Enums.Events.IMAGE_RENDERED],
        [cornerstone.eventTarget, cornerstoneTools.Enums.Events.SEGMENTATION_RENDERED],
        [cornerstone.eventTarget, cornerstoneTools.Enums.Events.ANNOTATION_RENDERED],
      ];
      let timer;
      const restart = () => {
        clearTimeout(timer);
        timer = setTimeout(() => {
          drawn.forEach(([target, name]) => target?.removeEventListener(name, restart));
          resolve();
        }, 200);
      };
      drawn.forEach(([target, name]) => target?.addEventListener(name, restart));
      restart();
      viewport?.render();
    });
  const sum = canvas => {
    const words = new Uint32Array(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer);
    return `${canvas.width} ${canvas.height} ${words.reduce((hash, word) => (Math.imul(hash, 31) + word) | 0, 7)}`;
  };
  let last = null;
  for (const end = Date.now() + limitMs; Date.now() < end; ) {
    // Asked anew each time: OHIF makes another viewport where the layout or the kind of series changes.
    const viewport = cornerstoneViewportService.getCornerstoneViewport(viewportGridService.getActiveViewportId());
    const imageId = viewport?.getCornerstoneImage?.()?.imageId;
    await quiet(viewport);
    // The index runs ahead of the image, which may still be on its way; and OHIF lets a chosen segment flash.
    const now = imageId && imageId === viewport.getCurrentImageId() ? sum(viewport.canvas) : null;
    if (now && now === last) return true;
    last = now;
  }
  return false;
}

/** The active viewport: which image, the canvas as PNG, where three corners of the canvas lie in the patient. */
export function readView() {
  const id = window.services.viewportGridService.getActiveViewportId();
  const viewport = window.services.cornerstoneViewportService.getCornerstoneViewport(id);
  const { canvas } = viewport;
  const imageId = viewport.getCurrentImageId();
  return {
    kind: viewport.type,
    sopInstanceUid: window.cornerstone.metaData.get('sopCommonModule', imageId)?.sopInstanceUID,
    index: viewport.getCurrentImageIdIndex(),
    size: [canvas.width, canvas.height],
    // Of the canvas points (0, 0), (width, 0) and (0, height), LPS mm.
    corners: [[0, 0], [canvas.clientWidth, 0], [0, canvas.clientHeight]].map(at => [...viewport.canvasToWorld(at)]),
    words: [...document.querySelectorAll('[data-cy^="viewport-overlay"]')].map(e => e.innerText.replace(/\s+/g, ' ')),
    png: canvas.toDataURL('image/png'),
  };
}

/** Goes to an image of a series that was opened; false while it is not in the active viewport. */
export function showImage({ uid, at }) {
  const { viewportGridService, cornerstoneViewportService } = window.services;
  const id = viewportGridService.getActiveViewportId();
  const viewport = cornerstoneViewportService.getCornerstoneViewport(id);
  if (!viewportGridService.getDisplaySetsUIDsForViewport(id)?.includes(uid) || !viewport?.getCurrentImageId()) return false;
  window.cornerstone.utilities.jumpToSlice(viewport.element, { imageIndex: at });
  return viewport.getCurrentImageIdIndex() === at;
}

/** The bytes of the document in the viewport, in base64. */
export async function readDocument() {
  const answer = await fetch(document.querySelector('object[type="application/pdf"]').data);
  const bytes = new Uint8Array(await answer.arrayBuffer());
  return btoa(bytes.reduce((text, byte) => text + String.fromCharCode(byte), ''));
}

/** The words of a report that OHIF shows as text in the active viewport; null where it does not, or not yet. */
export function readText(displaySetUid) {
  const { displaySetService, viewportGridService } = window.services;
  const set = displaySetService.getDisplaySetByUID(displaySetUid);
  if (set.Modality !== 'SR' || set.isImagingMeasurementReport !== false) return null;
  const id = viewportGridService.getActiveViewportId();
  if (!viewportGridService.getDisplaySetsUIDsForViewport(id)?.includes(displaySetUid)) return null;
  const words = document.querySelector('[data-cy="viewport-pane"]')?.innerText.trim() ?? '';
  return words.startsWith('Loading') ? null : words || null;
}

/** Every segmentation: names and colours, and for each segment its voxels as OHIF placed them. */
export function readSegmentations() {
  const { segmentationService, viewportGridService } = window.services;
  const viewportId = viewportGridService.getActiveViewportId();
  return segmentationService.getSegmentations().map(found => {
    const voxels = {};
    for (const imageId of found.representationData?.Labelmap?.imageIds ?? []) {
      const image = window.cornerstone.cache.getImage(imageId);
      const plane = window.cornerstone.metaData.get('imagePlaneModule', image.referencedImageId);
      const uid = window.cornerstone.metaData.get('sopCommonModule', image.referencedImageId).sopInstanceUID;
      const values = image.voxelManager.getScalarData();
      for (let at = 0; at < values.length; at++) {
        if (!values[at]) continue;
        const segment = (voxels[values[at]] ??= { count: 0, slices: {}, sum: [0, 0, 0] });
        const row = Math.floor(at / image.columns);
        const column = at % image.columns;
        segment.count += 1;
        segment.slices[uid] = (segment.slices[uid] ?? 0) + 1;
        for (let axis = 0; axis < 3; axis++) {
          segment.sum[axis] +=
            plane.imagePositionPatient[axis] +
            plane.rowCosines[axis] * plane.columnPixelSpacing * column +
            plane.columnCosines[axis] * plane.rowPixelSpacing * row;
        }
      }
    }
    return {
      label: found.label,
      segments: Object.values(found.segments).map(segment => {
        const { count = 0, slices = {}, sum } = voxels[segment.segmentIndex] ?? {};
        return {
          index: segment.segmentIndex,
          label: segment.label,
          colour: [...segmentationService.getSegmentColor(viewportId, found.segmentationId, segment.segmentIndex)],
          voxels: count,
          slices,
          centreLps: count ? sum.map(value => value / count) : null,
        };
      }),
    };
  });
}

/** Every measurement of the panel. */
export function readMeasurements() {
  return window.services.measurementService.getMeasurements().map(found => ({
    tool: found.toolName,
    label: found.label,
    finding: found.finding?.text,
    sites: (found.findingSites ?? []).map(site => site.text),
    primary: found.displayText?.primary ?? [],
    sopInstanceUid: found.referenceSOPInstanceUID ?? found.SOPInstanceUID,
    points: (found.points ?? []).map(point => [...point]),
  }));
}

/** How many lines of annotations the page shows, and their texts. */
export function readAnnotations() {
  const layers = [...document.querySelectorAll('svg.svg-layer')];
  return {
    lines: layers.reduce((sum, layer) => sum + layer.querySelectorAll('line, path').length, 0),
    texts: layers.flatMap(layer => [...layer.querySelectorAll('text')].map(text => text.textContent)),
  };
}
