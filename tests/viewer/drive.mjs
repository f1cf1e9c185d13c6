/* Drives OHIF in headless Chromium over one study as a reader would, and writes down what it shows and what it knows.

   node drive.mjs --url URL_OF_THE_STUDY --out FOLDER --chromium PROGRAM --modules FOLDER_OF_NODE_MODULES [--only SEG,SR,UID]

   Opens the CT, then each segmentation and each report: answers OHIF's question, reads its services, clicks every row
   of the panel, each time from the first slice. Then each series of pictures, image by image, and each document.
   FOLDER gets report.json, screenshots of the page, and for each view the bare canvas.
   Exit code 0: the report was written, whatever it says; the tests judge. */
import { createRequire } from 'node:module';
import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import {
  readAnnotations,
  readDocument,
  readMeasurements,
  readSegmentations,
  readText,
  readView,
  sets,
  settle,
  showImage,
} from './page.mjs';

const { values: option } = parseArgs({
  options: {
    url: { type: 'string' },
    out: { type: 'string' },
    chromium: { type: 'string' },
    modules: { type: 'string' },
    only: { type: 'string' }, // modalities of the results to open, or UIDs of their series; all where it is left out
    timeout: { type: 'string', default: '240' },
  },
});
const timeout = Number(option.timeout) * 1000;
const { chromium } = createRequire(path.join(option.modules, '/'))('playwright-core');
mkdirSync(option.out, { recursive: true });

const YES = '[data-cy="yes-hydrate-btn"]:visible';
const ROWS = '[data-cy="data-row"]:visible';

const begun = Date.now();
const report = {
  url: option.url,
  sets: [],
  ct: null,
  segmentations: [],
  reports: [],
  pictures: [],
  documents: [],
  page: null,
  failures: [],
};

function listen(page) {
  const heard = { errors: [], exceptions: [], refused: [], left: [] };
  page.on('console', message => message.type() === 'error' && heard.errors.push(message.text()));
  page.on('pageerror', error => heard.exceptions.push(error.message));
  page.on('response', answer => answer.status() >= 400 && heard.refused.push(`${answer.status()} ${answer.url()}`));
  return heard;
}

/** Saves the page, unless told not to, and the bare canvas of the active viewport; returns what that shows. */
async function look(page, name, { whole = true } = {}) {
  const settled = await page.evaluate(settle, timeout);
  const view = { settled, milliseconds: Date.now() - begun, ...(await page.evaluate(readView)) };
  if (whole) await page.screenshot({ path: path.join(option.out, `${name}.png`) });
  writeFileSync(path.join(option.out, `${name}.canvas.png`), Buffer.from(view.png.split(',')[1], 'base64'));
  delete view.png;
  return { ...view, name, canvas: `${name}.canvas.png` };
}

/** The series of the study as the PACS lists them: what OHIF must show. */
async function listSeries(page) {
  const { origin, searchParams } = new URL(option.url);
  const answer = await page.request.get(`${origin}/dicom-web/studies/${searchParams.get('StudyInstanceUIDs')}/series`);
  return (await answer.json()).map(found => found['0020000E'].Value[0]);
}

async function openStudy(page) {
  const series = await listSeries(page);
  await page.goto(option.url, { timeout, waitUntil: 'commit' });
  await page.waitForFunction(sets, series, { timeout, polling: 200 });
  report.ct = await look(page, '1-ct');
  const found = await page.evaluate(sets, series);
  report.sets = found.map(({ uid, ...shown }) => shown);
  return found;
}

async function openThumbnail(page, set) {
  const thumbnail = page.locator(`[id="thumbnail-${set.uid}"]`);
  await thumbnail.scrollIntoViewIfNeeded();
  await thumbnail.dblclick();
}

/** Opens a derived series by its thumbnail and says yes to the question; false where none was asked.
    `outcome` says what came: "asked"; "text", a report that OHIF shows as such; "broke"; or "nothing" in time. */
async function open(page, set) {
  await openThumbnail(page, set);
  const yes = page.locator(YES).first();
  set.outcome = await Promise.race([
    yes.waitFor({ timeout }).then(() => 'asked'),
    page.getByText('Something went wrong').first().waitFor({ timeout }).then(() => 'broke'),
    page.waitForFunction(readText, set.uid, { timeout }).then(() => 'text'),
  ]).catch(() => 'nothing');
  if (set.outcome !== 'asked') {
    set.text = await page.evaluate(readText, set.uid);
    await page.screenshot({ path: path.join(option.out, `${set.prefix}-${set.outcome}.png`) });
    return false;
  }
  set.question = await page.locator(YES).first().evaluate(button => {
    let around = button;
    while (around.parentElement && around.innerText.length < 15) around = around.parentElement;
    return around.innerText.replace(/\s+/g, ' ').trim();
  });
  set.opened = await look(page, `${set.prefix}-opened`);
  await yes.click();
  await page.locator(YES).waitFor({ state: 'detached', timeout });
  return true;
}

async function showPanel(page, name) {
  const tab = page.locator(`[data-cy="${name}-btn"]:visible`).first();
  if (await tab.count()) await tab.click();
  await page.locator(ROWS).first().waitFor({ timeout });
}

/** Clicks each row of the open panel, from the first slice each time; the views that the clicks lead to. */
async function clickRows(page, prefix, after) {
  const rows = page.locator(ROWS);
  const views = [];
  for (let at = 0; at < (await rows.count()); at++) {
    const images = await page.evaluate(async () => {
      const id = window.services.viewportGridService.getActiveViewportId();
      const viewport = window.services.cornerstoneViewportService.getCornerstoneViewport(id);
      await window.cornerstone.utilities.jumpToSlice(viewport.element, { imageIndex: 0 });
      return viewport.getImageIds().length;
    });
    await rows.nth(at).click();
    // From the only image of a series, as of a radiograph, no click leads elsewhere.
    const moved = images > 1 && await page
      .waitForFunction(
        () => {
          const id = window.services.viewportGridService.getActiveViewportId();
          return window.services.cornerstoneViewportService.getCornerstoneViewport(id).getCurrentImageIdIndex() !== 0;
        },
        null,
        { timeout: 30000 }
      )
      .then(() => true, () => false);
    const text = (await rows.nth(at).innerText()).replace(/\s+/g, ' ').trim();
    const view = { text, moved, ...(await look(page, `${prefix}-row${at + 1}`)) };
    if (after && text.includes('Nodule')) view.without = await after(page, view);
    views.push(view);
  }
  return views;
}

/** The view without the segments of nodules; lungs stay. */
async function withoutNodules(page, view) {
  const show = visible =>
    page.evaluate(shown => {
      const { segmentationService, viewportGridService } = window.services;
      const id = viewportGridService.getActiveViewportId();
      for (const { segmentationId, type } of segmentationService.getSegmentationRepresentations(id)) {
        for (const { segmentIndex, label } of Object.values(segmentationService.getSegmentation(segmentationId).segments)) {
          if (label.startsWith('Nodule')) {
            segmentationService.setSegmentVisibility(id, segmentationId, segmentIndex, shown, type);
          }
        }
      }
    }, visible);
  await show(false);
  const bare = await look(page, `${view.name}-without`, { whole: false });
  await show(true);
  return bare;
}

async function visitSegmentation(page, set) {
  const asked = await open(page, set);
  report.segmentations.push(set);
  if (!asked) return;
  await page.waitForFunction(() => window.services.segmentationService.getSegmentations().length > 0, null, { timeout });
  await showPanel(page, 'panelSegmentation');
  set.content = await page.evaluate(readSegmentations);
  set.rows = await clickRows(page, set.prefix, withoutNodules);
}

async function visitReport(page, set) {
  const asked = await open(page, set);
  report.reports.push(set);
  if (!asked) return;
  await page.waitForFunction(() => window.services.measurementService.getMeasurements().length > 0, null, { timeout });
  await showPanel(page, 'trackedMeasurements');
  set.measurements = await page.evaluate(readMeasurements);
  set.panel = await page.locator('#viewerLayoutResizableRightPanel').innerText();
  set.rows = await clickRows(page, set.prefix);
  set.drawn = await page.evaluate(readAnnotations);
}

async function visitPictures(page, set) {
  report.pictures.push(set);
  await openThumbnail(page, set);
  set.views = [];
  for (let at = 0; at < set.images; at++) {
    await page.waitForFunction(showImage, { uid: set.uid, at }, { timeout, polling: 200 });
    set.views.push(await look(page, `${set.prefix}-${at + 1}`));
  }
}

async function visitDocument(page, set) {
  report.documents.push(set);
  await openThumbnail(page, set);
  await page.locator('object[type="application/pdf"]').waitFor({ timeout });
  set.document = `${set.prefix}.pdf`;
  writeFileSync(path.join(option.out, set.document), Buffer.from(await page.evaluate(readDocument), 'base64'));
}

const visits = { SEG: visitSegmentation, SR: visitReport, DOC: visitDocument, OT: visitPictures };

const browser = await chromium.launch({
  executablePath: option.chromium,
  // WebGL by software: the machine may have no graphics card, and pictures should not depend on it.
  // The page itself is drawn without it, which Debian's settings would change: that takes several times as long.
  args: [
    '--use-angle=swiftshader',
    '--enable-unsafe-swiftshader',
    '--disable-gpu-rasterization',
    '--hide-scrollbars',
    '--disable-dev-shm-usage',
  ],
});
const context = await browser.newContext({ viewport: { width: 1000, height: 640 } });
await context.addInitScript(() => {
  if (window === window.top) localStorage.setItem('shownTours', JSON.stringify(['basicViewerTour']));
});
const page = await context.newPage();
report.page = listen(page);
// Nothing may be fetched from elsewhere; what was tried is reported.
await context.route(
  url => url.protocol.startsWith('http') && url.hostname !== '127.0.0.1',
  route => {
    report.page.left.push(route.request().url());
    return route.abort();
  }
);
try {
  const found = await openStudy(page);
  const wanted = option.only?.split(',') ?? Object.keys(visits);
  const results = wanted.flatMap(one => found.filter(set => [set.modality, set.series].includes(one) && !set.unsupported));
  for (const [at, set] of results.entries()) {
    set.prefix = `${at + 2}-${set.modality.toLowerCase()}`;
    await visits[set.modality](page, set);
  }
} catch (error) {
  report.failures.push(String(error));
  await page.screenshot({ path: path.join(option.out, 'failure.png') }).catch(() => {});
} finally {
  writeFileSync(path.join(option.out, 'report.json'), JSON.stringify(report, null, 1));
  await browser.close();
}
