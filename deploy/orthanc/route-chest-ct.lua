-- Sends each chest CT series to Pulmo Node ("pulmo" in DicomModalities) once nothing was added to it for a while
-- (StableAge). The job shows in Orthanc Explorer under "Jobs". Which series are chest CT:
--   the modality is CT, the image type is no localizer, and
--   the body part is empty or one of BODY_PARTS, or a description of series or study has one of WORDS.
-- The node looks for itself whether there are lungs, so too much does no harm, only work.

BODY_PARTS = { CHEST = true, THORAX = true, LUNG = true, CHESTABDOMEN = true, CHESTABDPELVIS = true }
WORDS = { 'CHEST', 'THORAX', 'LUNG', 'PULM' }

local function isChest(series, study)
   local part = string.upper(series['BodyPartExamined'] or ''):gsub('%s', '')
   if part == '' or BODY_PARTS[part] then
      return true
   end
   local text = string.upper((series['SeriesDescription'] or '') .. ' ' .. (study['StudyDescription'] or ''))
   for _, word in ipairs(WORDS) do
      if string.find(text, word, 1, true) then
         return true
      end
   end
   return false
end

local function isLocalizer(seriesId)
   local instances = ParseJson(RestApiGet('/series/' .. seriesId))['Instances']
   local tags = ParseJson(RestApiGet('/instances/' .. instances[1] .. '/simplified-tags'))
   return string.find(string.upper(tags['ImageType'] or ''), 'LOCALIZER', 1, true) ~= nil
end

function OnStableSeries(seriesId, tags, metadata)
   if tags['Modality'] ~= 'CT' or isLocalizer(seriesId) then
      return
   end
   local study = ParseJson(RestApiGet('/series/' .. seriesId .. '/study'))['MainDicomTags']
   if isChest(tags, study) then
      local job = { Resources = { seriesId }, Asynchronous = true }
      RestApiPost('/modalities/pulmo/store', DumpJson(job, true))
   end
end
