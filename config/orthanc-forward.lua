-- Sends each CT series to Pulmo Node once nothing was added to it for a while (StableAge in Orthanc's configuration).
-- Results come back as SR and SEG, so they are not sent again. The job shows in Orthanc Explorer under "Jobs".
function OnStableSeries(seriesId, tags, metadata)
   if tags['Modality'] == 'CT' then
      local job = { Resources = { seriesId }, Asynchronous = true }
      RestApiPost('/modalities/pulmo/store', DumpJson(job, true))
   end
end
